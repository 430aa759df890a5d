#!/bin/sh
# Passwords for this component, and the URLs of workers and of the gateway:
# sh make-secret.sh | kubectl apply --namespace clipfleet -f -
set -eu
password() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
producer=$(password) worker=$(password) reader=$(password)
cat <<END
apiVersion: v1
kind: Secret
metadata:
  name: clipfleet-redis
stringData:
  PRODUCER_PASSWORD: "$producer"
  WORKER_PASSWORD: "$worker"
  READER_PASSWORD: "$reader"
---
apiVersion: v1
kind: Secret
metadata:
  name: clipfleet
stringData:
  CLIPFLEET_REDIS_URL: "redis://clipfleet-worker:$worker@redis:6379/0"
---
apiVersion: v1
kind: Secret
metadata:
  name: clipfleet-gateway
stringData:
  CLIPFLEET_REDIS_URL: "redis://clipfleet-producer:$producer@redis:6379/0"
END
