polypfed deploy flower fed --site north --site south --client small:client --federation small:federation
# The sites' owners: this server may ask for anything. (With a study, `polypfed policy approve` limits it.)
sed -i 's/approve = true/approve = false/' fed/sites/*/site.toml
fed/server/start.sh &
fed/sites/north/start.sh &
fed/sites/south/start.sh &
fed/server/run.sh
