#!/bin/sh
# Passwords for docker-compose.yml: sh ops/docker/make-env.sh > .env
# Compose reads .env by itself. This file gives access to the ledger: keep it out of git.
set -eu
umask 077
for name in PRODUCER_PASSWORD WORKER_PASSWORD READER_PASSWORD FLOWER_PASSWORD GRAFANA_PASSWORD AWS_ACCESS_KEY_ID \
  AWS_SECRET_ACCESS_KEY; do
  echo "$name=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')"
done
