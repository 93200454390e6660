#!/usr/bin/env bash
# Installs what the tests need and cargo does not bring: RabbitMQ (with Erlang), PostgreSQL and `ip` (with which the chaos
# suite cuts nodes off from each other in a network of its own), by apt.
# Nothing is started: the tests start servers of their own, on loopback, and end them.
set -euo pipefail

missing=()
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || missing+=(rabbitmq-server)
compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql)
command -v ip >/dev/null || missing+=(iproute2)

if [ "${#missing[@]}" -eq 0 ]; then
    for package in rabbitmq-server postgresql iproute2; do
        echo "$package is installed: $(dpkg-query --show --showformat='${Version}' "$package" 2>/dev/null || echo 'not by apt')"
    done
    exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    as_root=(sudo)
fi

# apt would start the services at once. Packages ask this script first; 101 means no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    echo "keeping apt from starting services (${policy}, removed afterwards)"
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod +x "$policy"
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi

# Nor is PostgreSQL's package to make a database of the machine's own.
settings=/etc/postgresql-common/createcluster.conf
if [ ! -e "$settings" ]; then
    "${as_root[@]}" mkdir -p "$(dirname "$settings")"
    echo 'create_main_cluster = false' | "${as_root[@]}" tee "$settings" >/dev/null
fi

echo "installing ${missing[*]}"
"${as_root[@]}" apt-get update
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
    -o Dpkg::Options::=--force-confold "${missing[@]}"
for package in "${missing[@]}"; do
    echo "installed $package $(dpkg-query --show --showformat='${Version}' "$package")"
done
