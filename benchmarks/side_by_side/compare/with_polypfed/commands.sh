python compare.py
