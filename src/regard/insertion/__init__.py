"""Where attention is put in: a forward pass is followed, places are found in it, `attach` fills them and undoes
it."""
