#!/bin/sh
# Start Valkey or Redis as clipfleet needs it: it keeps the writes that it acknowledged, evicts nothing, and has only the
# users of users.acl, with passwords from the environment. Arguments go to the server.
set -eu
here=$(dirname "$0")
users=$(mktemp)
sed -e "s/>PRODUCER-PASSWORD/>${PRODUCER_PASSWORD:?}/" \
    -e "s/>WORKER-PASSWORD/>${WORKER_PASSWORD:?}/" \
    -e "s/>READER-PASSWORD/>${READER_PASSWORD:?}/" "$here/users.acl" >"$users"
if [ -n "${FLOWER_PASSWORD:-}" ]; then
  # For CLIPFLEET_CELERY_EVENTS: workers publish events on Celery's channels, and Flower queries them there. Flower sees
  # the length of the queue, and nothing of the ledger.
  channels='\&/0.celeryev/* \&/0.celery.pidbox \&/0.celery.pidbox/*'
  boxes='~*.celery.pidbox ~*.reply.celery.pidbox*'
  sed -i "/^user clipfleet-worker /s|\$| $channels $boxes +publish +subscribe +psubscribe +unsubscribe +punsubscribe|" "$users"
  echo "user clipfleet-flower on >$FLOWER_PASSWORD resetchannels $(echo "$channels" | tr -d '\\') $boxes" \
    "~_kombu.* ~celeryev.* %R~clipfleet ~unacked ~unacked_index ~unacked_mutex +@all -@dangerous" >>"$users"
fi
unset PRODUCER_PASSWORD WORKER_PASSWORD READER_PASSWORD FLOWER_PASSWORD
server=$(command -v valkey-server || command -v redis-server)
exec "$server" --aclfile "$users" --appendonly yes --appendfsync everysec --maxmemory-policy noeviction "$@"
