python signprox.py
