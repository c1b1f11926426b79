#!/bin/sh
# Makes what kustomization.yaml here puts into secrets: infra/k8s/secrets/prepare.sh [HOST[:PORT] [FOLDER]]
# HOST is the server as the processes know it, redis.spark.svc unless given: URLs and certificate name it.
# Again: passwords and certificates that are there stay. A certificate from elsewhere: put tls.crt, tls.key and ca.crt
# there before.
set -eu
umask 077
root=$(cd "$(dirname "$0")/../../.." && pwd)
address=${1:-redis.spark.svc:6379}
folder=${2:-$(dirname "$0")/made}
sh "$root/infra/redis/make_users.sh" "$folder" "rediss://$address"
[ -s "$folder/tls.crt" ] || sh "$root/infra/redis/make_certificate.sh" "$folder" "${address%%:*}"
