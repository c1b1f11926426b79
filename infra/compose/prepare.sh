#!/bin/sh
# Makes the secrets of docker-compose.yml: infra/compose/prepare.sh [FOLDER]; once, before the first `up`.
#
# Compose mounts a secret with the owner and mode that its file has here, and the containers run as users of their own.
# So the files may be read by all, and the folder be entered by its owner only.
set -eu
umask 077
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$root/secrets}
sh "$root/infra/redis/make_users.sh" "$folder" redis://redis:6379
chmod 700 "$folder"
if ! [ -s "$folder/grafana.password" ]; then
    od -An -v -N16 -tx1 /dev/urandom | tr -d ' \n' >"$folder/grafana.password"
fi
chmod a+r "$folder"/*.url "$folder"/*.password "$folder/users.acl"
