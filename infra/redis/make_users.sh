#!/bin/sh
# Makes the users of a server from users.acl: make_users.sh FOLDER SERVER_URL [RUN]
#
# FOLDER then holds, readable by its owner only:
#   users.acl       for the server (`aclfile`); holds hashes, no password
#   ROLE.url        for the role: SERVER_URL with its user and password; point redis.url_file at it
#   ROLE.password   made here unless it is there; delete one and run this again to change it
# With RUN the users may touch that run only, otherwise every run of the server.
set -eu
umask 077

usage() {
    echo "usage: make_users.sh FOLDER SERVER_URL [RUN], with SERVER_URL as rediss://redis.example:6379" >&2
    exit 2
}

sha256() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d ' ' -f 1; }

[ $# -ge 2 ] && [ $# -le 3 ] || usage
folder=$1 url=$2 run=${3:-*}
case $url in redis://*@* | rediss://*@*) usage ;; redis://* | rediss://*) ;; *) usage ;; esac
case $run in *[!A-Za-z0-9._-]*) [ "$run" = '*' ] || usage ;; esac
template=$(dirname "$0")/users.acl

mkdir -p "$folder"
fill="s/{\*}/{$run}/g"
for role in $(sed -n 's/^user \([a-z]*\) on .*/\1/p' "$template"); do
    secret=$folder/$role.password
    [ -s "$secret" ] || od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n' >"$secret"
    password=$(cat "$secret")
    case $password in
    *[!A-Za-z0-9._~-]*) echo "make_users.sh: $secret: use letters, digits and . _ ~ - only" >&2 && exit 2 ;;
    esac
    fill="$fill; s/%$role%/$(printf %s "$password" | sha256)/"
    echo "${url%%://*}://$role:$password@${url#*://}" >"$folder/$role.url"
done

# without comments, continuation lines joined; the new file appears whole
sed -e '/^#/d' -e '/^$/d' -e "$fill" "$template" |
    awk '/^[^ ]/ && NR > 1 { print "" } { sub(/^ +/, " "); printf "%s", $0 } END { print "" }' >"$folder/users.acl.new"
mv "$folder/users.acl.new" "$folder/users.acl"
