python job_signprox.py
