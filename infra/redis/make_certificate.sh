#!/bin/sh
# Makes an authority and a server's certificate signed by it: make_certificate.sh FOLDER HOST
#
# FOLDER then holds ca.crt (for the clients: redis.tls_ca_file), tls.crt and tls.key (for the server), valid for 825
# days, for HOST, which is a name or an IPv4 address, and for localhost. The authority's key is thrown away, so nobody
# signs another; make all anew before they end. An organisation that has an authority of its own uses that.
set -eu
umask 077
[ $# -eq 2 ] || { echo "usage: make_certificate.sh FOLDER HOST" >&2 && exit 2; }
folder=$1 host=$2
case $host in *[!0-9.]*) name=DNS:$host ;; *) name=IP:$host ;; esac
mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
curve="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
# shellcheck disable=SC2086
openssl req -x509 $curve -days 825 -subj "/CN=SPARK run authority" -keyout "$work/ca.key" -out "$work/ca.crt" \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign" 2>"$work/said" ||
    { cat "$work/said" >&2 && exit 1; }
# shellcheck disable=SC2086
openssl req $curve -subj "/CN=$host" -keyout "$work/tls.key" -out "$work/tls.csr" 2>/dev/null
cat >"$work/extensions" <<EXTENSIONS
subjectAltName=$name,DNS:localhost,IP:127.0.0.1
extendedKeyUsage=serverAuth
authorityKeyIdentifier=keyid
EXTENSIONS
openssl x509 -req -in "$work/tls.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" -CAcreateserial -days 825 \
    -extfile "$work/extensions" -out "$work/tls.crt" 2>/dev/null
mv "$work/ca.crt" "$work/tls.key" "$work/tls.crt" "$folder"
