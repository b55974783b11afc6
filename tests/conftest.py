"""What all tests share."""

import os
import signal

from dgl_scale.ray_cluster import ray_environment

# A shell that starts the tests in the background has them ignore SIGINT, and every process that they start inherits it;
# tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Some tests import Ray before a private cluster starts in their process; that one would then keep its token in the home folder.
os.environ.update(ray_environment())
