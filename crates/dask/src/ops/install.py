"""Sent to a scheduler that others started: runs the installation that the runtime's archive brings along."""


async def main(archive, digest, dask_scheduler=None):
    import ast
    import hashlib
    import io
    import json
    import zipfile

    if hashlib.sha256(archive).hexdigest() != digest:
        message = "the archive of the runtime does not match its digest"
        return json.dumps({"status": "error", "reason": "InstallFailed", "message": message}).encode()
    source = zipfile.ZipFile(io.BytesIO(archive)).read("daskade_runtime/install.py").decode()
    # Only the constant BOOT is wanted: importing the module would leave this copy of the package behind.
    values = {
        node.targets[0].id: node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    boot = {"__name__": "daskade_boot"}
    exec(compile(ast.literal_eval(values["BOOT"]), "<daskade boot>", "exec"), boot)
    return await boot["main"](archive, digest, dask_scheduler=dask_scheduler)
