"""A permanent tiny writer and reader that measures a live gateway from outside.

It writes known points, waits for their acknowledgement, reads them back and
compares: lost, doubled, disordered and wrong points, and how long an
acknowledgement and a read take. It talks to a gateway as any client does and
never touches its database.
"""
