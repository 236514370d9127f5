"""Checkpoint files of Point-MAE, Point-BERT and pc-ewa: read, renamed, loaded into a model, written."""
