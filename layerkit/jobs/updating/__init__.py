"""The engine that makes updates out of the images of a storage.

`catalogue` knows what is held, `forms` and `library` read it, `updates` makes of it what takes a
node from one image to another, through `kept` (made once) and `workshop` (a few at a time).
`jobs/serve` asks it for nodes, `stored` for updates that are kept beside an image.
"""
