nvflare provision -g
sed -i 's/name: server1/name: localhost/' project.yml
nvflare provision -p project.yml
workspace/example_project/prod_00/localhost/startup/start.sh
workspace/example_project/prod_00/site-1/startup/start.sh
workspace/example_project/prod_00/site-2/startup/start.sh
python job.py
