"""Load on a user's own cluster, and what it was measured to do: `kvnode bench`.

The generator is Python on one core, so it is kept cheap: a connection for each client, requests as bytes, answers read
no further than their outcome. `Load` says how busy it was itself, since a generator at its limit measures itself.
"""
