#!/bin/sh
# Stands for what would fetch images for runc's tests: names those made of Debian's packages.
here=$(dirname "$(readlink -f "$0")")
images=$(readlink -f "$here/../../../images")
echo "BUSYBOX_IMAGE=$images/busybox.tar"
echo "DEBIAN_IMAGE=$images/debian.tar"
