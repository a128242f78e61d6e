#!/bin/sh
# Makes what docker-compose.secure.yml mounts, in the folder secrets/ beside it. Once: the cluster's secret, the first token, a
# certificate authority, a certificate for each node and for HAProxy. Each time: the files' modes, and HAProxy's
# configuration with TLS in it.
#
# The folder is its owner's alone. What is secret in it is readable for its group too: the nodes run as another user, who sees
# the files mounted and is in that group (KVNODE_SECRETS_GID). A node takes no secret that everybody can read.
set -eu
cd "$(dirname "$0")/.."
umask 077
mkdir -p secrets
cd secrets

if [ ! -e haproxy.crt ]; then
  openssl rand -hex 32 >cluster-secret
  openssl rand -hex 32 >token
  key='ec -pkeyopt ec_paramgen_curve:P-256'
  # shellcheck disable=SC2086
  openssl req -x509 -newkey $key -nodes -days 3650 -subj /CN=kvnode-compose -keyout ca.key -out ca.pem \
    -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
  for name in n1 n2 n3 haproxy; do
    # shellcheck disable=SC2086
    openssl req -new -newkey $key -nodes -subj "/CN=$name" -keyout "$name.key" -out "$name.csr" 2>/dev/null
    # Peers know a node by its name, clients on this machine by localhost.
    cat >"$name.ext" <<END
subjectAltName = DNS:$name, DNS:localhost, IP:127.0.0.1
extendedKeyUsage = serverAuth, clientAuth
keyUsage = critical, digitalSignature
authorityKeyIdentifier = keyid
END
    openssl x509 -req -in "$name.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 825 -extfile "$name.ext" -out "$name.pem" 2>/dev/null
    rm "$name.csr" "$name.ext"
  done
  cat haproxy.pem haproxy.key >.haproxy.crt
  mv .haproxy.crt haproxy.crt
  echo "made secrets/: the token is in secrets/token, clients trust secrets/ca.pem"
fi
# Each time: kvnode 0.1 made these files with mode 0644, and its haproxy.cfg showed statistics to the whole network.
chmod 0640 -- *
chmod 0644 -- *.pem
chmod 0600 ca.key
tls='ssl verify required ca-file /run/secrets/ca.pem'
sed -e 's|^  bind :8080$|  bind :8080 ssl crt /run/secrets/haproxy.crt|' \
  -e "s|^  server \(n[123]\) .*check\$|& $tls verifyhost \1 sni str(\1) check-sni \1|" \
  -e "s|^  server \(n[123]\) .*track .*\$|& $tls verifyhost \1 sni str(\1)|" ../haproxy/haproxy.cfg >.haproxy.cfg
chmod 0644 .haproxy.cfg
mv .haproxy.cfg haproxy.cfg
