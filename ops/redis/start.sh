#!/bin/sh
# Start Valkey or Redis as clipfleet needs it: it keeps what it acknowledged, evicts nothing, and knows only the
# users of users.acl, whose passwords come from the environment. Arguments go to the server.
set -eu
here=$(dirname "$0")
users=$(mktemp)
sed -e "s/>PRODUCER-PASSWORD/>${PRODUCER_PASSWORD:?}/" \
    -e "s/>WORKER-PASSWORD/>${WORKER_PASSWORD:?}/" \
    -e "s/>READER-PASSWORD/>${READER_PASSWORD:?}/" "$here/users.acl" >"$users"
unset PRODUCER_PASSWORD WORKER_PASSWORD READER_PASSWORD
server=$(command -v valkey-server || command -v redis-server)
exec "$server" --aclfile "$users" --appendonly yes --appendfsync everysec --maxmemory-policy noeviction "$@"
