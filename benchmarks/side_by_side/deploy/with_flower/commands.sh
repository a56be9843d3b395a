openssl req -x509 -newkey rsa:4096 -nodes -days 365 -subj /CN=authority -keyout ca.key -out ca.crt
openssl req -newkey rsa:4096 -nodes -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 \
    -keyout server.key -out server.csr
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -copy_extensions copy -out server.pem
ssh-keygen -q -t ecdsa -b 384 -N "" -f north
ssh-keygen -q -t ecdsa -b 384 -N "" -f south
flower-superlink --ssl-ca-certfile ca.crt --ssl-certfile server.pem --ssl-keyfile server.key \
    --enable-supernode-auth --host 127.0.0.1 --port 8443 &
mkdir -p "$FLWR_HOME" && sed "s#ca.crt#$PWD/ca.crt#" connection.toml > "$FLWR_HOME/config.toml"
flwr supernode register north.pub small
flwr supernode register south.pub small
flower-supernode --root-certificates ca.crt --superlink 127.0.0.1:8443 \
    --auth-supernode-private-key north --node-config site=0 --port 9094 &
flower-supernode --root-certificates ca.crt --superlink 127.0.0.1:8443 \
    --auth-supernode-private-key south --node-config site=1 --port 9095 &
flwr run . small --stream
