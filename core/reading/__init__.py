"""Files of strangers, looked at before anything is made of them: how large, of what form, and nothing in them runs."""
