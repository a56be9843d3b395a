python server_app.py
