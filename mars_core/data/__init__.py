"""Datasets of images and conversations: reading, checking, splitting and encoding.

records, images: what a sample is.           readers: samples from files, one module per format.
check, conversation_rules, shared, hashing:  what a dataset holds, and what is wrong with it.
splits, subsets: three ways, and nested training subsets.
chat, processing, lengths, encode, collate, dataset: samples as model inputs (the last three need torch).
"""
