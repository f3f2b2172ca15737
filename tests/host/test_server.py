"""The pack on a live server: it loads, its nodes are there, stock nodes work on the demo model."""


def test_pack_loads_without_complaint(server):
    log = server.log()
    assert server.pack_name in log
    assert "IMPORT FAILED" not in log and "Error while calling comfy_entrypoint" not in log, log[-4000:]
    ours = [name for name in server.object_info() if name.startswith("SemEdit_")]
    assert "SemEdit_LoadDemoModel" in ours
