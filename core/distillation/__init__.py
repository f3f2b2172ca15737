"""An edit taught to a small network by pairs that the edit itself made (pix2pix-zero, section 4.5 and appendix A)."""
