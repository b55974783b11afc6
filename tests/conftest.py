"""What all tests share."""

import signal

# A shell that starts the tests in the background has them ignore SIGINT, and every process that they start inherits it;
# tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
