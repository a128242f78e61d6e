#!/bin/sh
# Makes, once, the certificates by which the pods of kvnode.yaml know each other: certificates/peers/ has the authority's
# certificate, and a certificate and key for each pod, for the Secret `kvnode-peers`; certificates/ca.key stays with you.
#
#   sh deploy/kubernetes/certificates.sh [PODS]        in the folder that certificates/ is to be in; 3 pods by default
#
# Called again with more pods it makes what is missing. Certificates are good for 825 days: remove a pod's two files, call
# it again, replace the Secret, and restart the pods one by one (kubectl rollout restart statefulset/kvnode).
set -eu
pods=${1:-3}
umask 077
mkdir -p certificates/peers
cd certificates

key='ec -pkeyopt ec_paramgen_curve:P-256'
if [ ! -e ca.key ]; then
  # shellcheck disable=SC2086
  openssl req -x509 -newkey $key -nodes -days 3650 -subj /CN=kvnode-peers -keyout ca.key -out peers/ca.pem \
    -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
fi
number=0
while [ "$number" -lt "$pods" ]; do
  name=kvnode-$number
  number=$((number + 1))
  [ ! -e "peers/$name.pem" ] || continue
  # shellcheck disable=SC2086
  openssl req -new -newkey $key -nodes -subj "/CN=$name" -keyout "peers/$name.key" -out "$name.csr" 2>/dev/null
  # Peers know a node by its --node-id, which is the pod's name, whatever its address is.
  cat >"$name.ext" <<END
subjectAltName = DNS:$name
extendedKeyUsage = serverAuth, clientAuth
keyUsage = critical, digitalSignature
authorityKeyIdentifier = keyid
END
  openssl x509 -req -in "$name.csr" -CA peers/ca.pem -CAkey ca.key -set_serial "0x$(openssl rand -hex 16)" -days 825 \
    -extfile "$name.ext" -out "peers/$name.pem" 2>/dev/null
  rm "$name.csr" "$name.ext"
done
echo "certificates/peers is for: kubectl create secret generic kvnode-peers --from-file=certificates/peers"
