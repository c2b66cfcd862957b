"""``eoq top``: a live view in the terminal. Only this folder imports Textual, which is the extra ``top``."""
