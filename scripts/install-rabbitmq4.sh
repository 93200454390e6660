#!/usr/bin/env bash
# Unpacks the newest RabbitMQ that Debian has, with its Erlang, as a small system in a folder of its own
# (400 MB): target/rabbitmq4, or the folder named. Nothing of it is started, and the machine's own RabbitMQ stays.
#   scripts/install-rabbitmq4.sh [FOLDER]      DEBIAN_SUITE=trixie takes another suite than sid
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath --canonicalize-missing "${1:-target/rabbitmq4}")
suite=${DEBIAN_SUITE:-sid}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

version() {
    dpkg-query --admindir="$folder/var/lib/dpkg" --show --showformat='${Version}' "$1"
}

if [ -e "$folder/etc/windrow-complete" ]; then
    echo "RabbitMQ $(version rabbitmq-server) is in $folder; remove that folder for a newer one"
    exit 0
fi
if [ -e "$folder" ]; then
    echo "$folder is there but not whole: remove it, then run this again" >&2
    exit 1
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    as_root=(sudo)
fi
if ! command -v debootstrap >/dev/null; then
    "${as_root[@]}" apt-get update
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends debootstrap
fi
mkdir -p "$(dirname "$folder")"
"${as_root[@]}" debootstrap --variant=minbase --include=rabbitmq-server,procps "$suite" "$folder" "$mirror"
# The node looks for its own name, localhost.
"${as_root[@]}" cp /etc/hosts "$folder/etc/hosts"
# Written last: without it the folder counts as half made.
"${as_root[@]}" touch "$folder/etc/windrow-complete"
echo "RabbitMQ $(version rabbitmq-server) on Erlang $(version erlang-base) is in $folder"
