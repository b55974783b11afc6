# shellcheck shell=bash
# Where Slurm itself reaches a node; its name need not be one that the network knows.
node_address() {
  scontrol show node "$1" --oneliner | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2
}
