"""The verifier that every installation passes: an archive has the length and the sha256 that were signed."""

from __future__ import annotations

from pathlib import Path

from jobagent.plugin import DigestMismatch, Package, ScratchUnusable, manifest


class DigestVerifier:
    """Compares an archive with its signed entry; stateless and thread-safe."""

    @property
    def name(self) -> str:
        """`digest`."""
        return "digest"

    def verify(self, package: Package, archive: Path) -> None:
        """Read the whole archive.

        Raises:
            DigestMismatch: It is not what was signed.
            ScratchUnusable: It cannot be read.
        """
        signed = package.archive
        try:
            size_bytes = archive.stat().st_size
            if size_bytes != signed.size_bytes:
                raise DigestMismatch(
                    f"archive of {package.id} has {size_bytes} bytes, signed are {signed.size_bytes}",
                    remedy="it was damaged or replaced on its way; it is not used",
                )
            found = manifest.hash_file(archive)
        except OSError as error:
            raise ScratchUnusable(f"cannot read {archive}: {error.strerror}") from error
        if found != signed.sha256:
            raise DigestMismatch(
                f"archive of {package.id} has sha256 {found[:16]}…, signed is {signed.sha256[:16]}…",
                remedy="it was damaged or replaced on its way; it is not used",
            )
