"""Frozen networks that several techniques read: CLIP and vision transformers, from local files only."""
