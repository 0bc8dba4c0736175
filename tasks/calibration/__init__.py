"""Calibration: plan its runs, train them in packs, read what is stored of them."""
