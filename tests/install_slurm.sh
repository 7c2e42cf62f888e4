#!/bin/sh
# Install the Slurm that tests/test_slurm.py starts (Debian, Ubuntu), as root. The services that the packages bring are
# not used: each test starts daemons of its own.
set -eu
apt-get update -q
apt-get install -q -y --no-install-recommends slurm-wlm munge iproute2 util-linux
