#!/bin/sh
# Prints haproxy/haproxy.cfg for the pods of kvnode.yaml in the namespace $1 (default: default). The names are whole ones:
# HAProxy looks names up without the search list of /etc/resolv.conf.
set -eu
namespace=${1:-default}
for number in 1 2 3; do
  set -- "$@" -e "s/ n$number:8001/ kvnode-$((number - 1)).kvnode-peers.$namespace.svc.cluster.local:8001/"
done
[ $# -eq 6 ] || shift
sed "$@" "$(dirname "$0")/../../haproxy/haproxy.cfg"
# The statistics are on the pod's loopback, where the kubelet cannot ask. It says nothing of the nodes: HAProxy is not
# restarted for their sake.
cat <<END

# Whether HAProxy itself runs, for the kubelet.
frontend health
  bind :8405
  monitor-uri /healthz
  http-request return status 404
END
