"""BERT with a classification head, and the wrapper through which TFF trains it."""
