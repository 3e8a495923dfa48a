"""What the upstream has: blobs of chosen sizes and an image of them, in a repository of Docker Hub's."""

import hashlib
import json
import os

REPOSITORY = "library/bench"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
MIB = 1 << 20


class Content:
    def __init__(self, upstream_dir):
        self.dir = upstream_dir
        self.root = f"{upstream_dir}/files/v2/{REPOSITORY}"
        os.makedirs(f"{self.root}/blobs", exist_ok=True)
        os.makedirs(f"{self.root}/manifests", exist_ok=True)
        self.digests = open(f"{upstream_dir}/digests", "w")

    def blob(self, size):
        """A blob of so many random bytes; its path."""
        return self.blob_of(size)[0]

    def blob_of(self, size):
        hasher, name = hashlib.sha256(), f"{self.root}/new"
        with open(name, "wb") as file:
            left = size
            while left:
                piece = os.urandom(min(left, MIB))
                hasher.update(piece)
                file.write(piece)
                left -= len(piece)
        digest = f"sha256:{hasher.hexdigest()}"
        os.rename(name, f"{self.root}/blobs/{digest}")
        self.knows(f"blobs/{digest}", digest)
        return f"/v2/{REPOSITORY}/blobs/{digest}", digest

    def image(self, tag, layers):
        """An image of layers that exist, as (digest, size); the paths of its manifest by tag and by digest."""
        _, config = self.blob_of(1500)
        described = [{"mediaType": LAYER, "digest": digest, "size": size} for digest, size in layers]
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {"mediaType": CONFIG, "digest": config, "size": 1500},
                "layers": described,
            }
        ).encode()
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        for reference in (tag, digest):
            with open(f"{self.root}/manifests/{reference}", "wb") as file:
                file.write(manifest)
            self.knows(f"manifests/{reference}", digest)
        return f"/v2/{REPOSITORY}/manifests/{tag}", f"/v2/{REPOSITORY}/manifests/{digest}"

    def knows(self, path, digest):
        self.digests.write(f'"/v2/{REPOSITORY}/{path}" "{digest}";\n')
        self.digests.flush()
