"""Datasets of images and conversations: reading, checking, splitting and encoding.

records and images say what a sample is, readers make samples from files (one module per format), check
and shared look at them, splits and subsets cut them, chat, encode, collate and dataset turn them into
model inputs. Only the last four import torch.
"""
