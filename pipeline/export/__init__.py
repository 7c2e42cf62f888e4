"""Hand the latents of an output to a trainer: files that its own dataset class reads.

families.py     the VAEs that trainers are made for, and how an output is recognised as one of theirs
trainer.py      what a trainer's format is: the VAE it takes, scaled or raw, and who writes it
row.py          one clip as a trainer takes it, read from an output
plan.py         which rows are exported, in which pieces; every refusal, before anything is written
place.py        the place: whose it is, which run works there, which pieces are finished
pieces.py       write one piece
tensor_file.py  a safetensors file whose bytes follow from its content
run.py          the whole export: plan, pieces in parallel, what the trainer needs at the end

Each other module is one format and is named for its trainer.
"""
