"""The interactive demo: its functions, its server asked for what it must not give, and itself in a real browser."""

import io
import json
import re
import shutil
import signal
import socket
import struct
import time
import zlib
from dataclasses import replace
from functools import partial
from itertools import pairwise

import httpx
import numpy as np
import pytest
from PIL import Image
from skimage import data as photos

import regard
import tiny
from regard.app import networks as offered_networks
from regard.app.events import NOTHING, paragraphs
from regard.app.networks import AS_IT_IS, DEFAULTS, Networks, Offer, attachable, offers
from regard.app.panel import look_into
from regard.app.pictures import DRAWN_AT, KEPT, PIXELS, Pictures
from regard.base.errors import install
from regard.cli import main as cli
from regard.comparison import prices
from regard.gallery.attention import see
from regard.gallery.images import read
from regard.gallery.opening import open_subject
from regard.maps.gradcam import METHODS
from regard.pictures.drawing import draw

VIT, SE = "vit_tiny_patch16_224", "seresnet18"


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(photos.astronaut()).resize((180, 120))


@pytest.fixture(scope="module")
def networks():
    return Networks(offers([VIT, SE], size=64))


# ---- what can be chosen


def test_only_what_was_named_can_be_opened(networks):
    assert list(networks.offered) == [VIT, SE]
    with pytest.raises(regard.UserError, match="there is no network 'resnet18' to choose"):
        networks.open("resnet18")
    assert list(offers([])) == list(DEFAULTS)


def test_a_few_stay_open_and_a_mechanism_leaves_the_network_alone():
    opened = []
    names = list("abcdef")

    plain = open_subject("resnet10t", size=32)

    def small(name):
        opened.append(name)
        return replace(plain, name=name)

    networks = Networks({name: Offer(partial(small, name)) for name in names})
    first = networks.open("a")
    assert networks.open("a") is first
    attached = networks.open("a", "cbam")
    assert opened == ["a"]
    assert regard.attached(attached.model)
    assert not regard.attached(first.model)
    for name in names[1:]:
        networks.open(name)
    assert networks.open("a") is not first
    assert opened == [*names, "a"]


def test_the_arms_of_a_comparison(tmp_path, photo, monkeypatch):
    folder = tiny.fill(tmp_path / "photos")
    with pytest.raises(regard.UserError, match="holds no comparison"):
        offers([str(folder)])
    tiny.train_here(monkeypatch)
    monkeypatch.setattr(prices, "SECONDS", 0.2)
    out = tmp_path / "mine"
    regard.compare(["cbam[squeeze=max]"], data=folder, seeds=1, epochs=1, out=out, **tiny.ASKED)
    networks = Networks(offers([str(out)]))
    assert networks.peak is None
    assert list(networks.offered) == ["none, seed 0", "cbam[squeeze=max], seed 0"]
    seen = look_into(networks, "cbam[squeeze=max], seed 0", AS_IT_IS, None, None, photo, (0.5, 0.5))
    assert seen.drawn is not None
    assert any(re.match(r"Predicted class: (dark|light), \d+ %", word) for word in seen.sentences)
    assert not any("random" in word for word in seen.sentences)
    with pytest.raises(regard.UserError, match="already has 'cbam"):
        networks.open("cbam[squeeze=max], seed 0", "cbam")
    assert next(iter(offers([str(out), str(folder.parent / "mine")]))) == "mine: none, seed 0"
    shutil.rmtree(out / "weights")
    with pytest.raises(regard.UserError, match="kept no weights"):
        offers([str(out)])


# ---- pictures of strangers


def saved(picture, form, **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def header(width, height):
    """A PNG that says how large it is, and holds nothing."""
    chunks = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0), b"IDAT" + bytes(8)
    whole = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


RED = Image.new("RGB", (40, 20), (200, 30, 40))
TURNED = Image.Exif()
TURNED[274] = 6  # a quarter to the right
READ = {
    "cmyk.jpg": (saved(RED.convert("CMYK"), "JPEG"), (40, 20), (200, 30, 40)),
    "turned.jpg": (saved(RED, "JPEG", exif=TURNED), (20, 40), (200, 30, 40)),
    "sixteen.png": (saved(Image.fromarray(np.full((8, 9), 32896, np.uint16)), "PNG"), (9, 8), (128, 128, 128)),
    "real.tiff": (saved(Image.fromarray(np.array([[0.0, 2.0]], np.float32)), "TIFF"), (2, 1), (0, 0, 0)),
    "glass.png": (saved(Image.new("RGBA", (5, 4), (0, 0, 0, 0)), "PNG"), (5, 4), (255, 255, 255)),
    "moving.gif": (saved(RED, "GIF", save_all=True, append_images=[RED.rotate(90)]), (40, 20), (200, 30, 40)),
    "bits.png": (saved(Image.new("1", (1, 1), 1), "PNG"), (1, 1), (255, 255, 255)),
    "long.png": (saved(Image.new("L", (3, 30_000), 7), "PNG"), (1, KEPT), (7, 7, 7)),
}


@pytest.mark.parametrize("name", READ)
def test_pictures_of_any_kind_are_read(name, tmp_path):
    content, size, colour = READ[name]
    (tmp_path / name).write_bytes(content)
    picture = read(tmp_path / name, pixels=PIXELS, longest=KEPT)
    assert (picture.mode, picture.size) == ("RGB", size)
    assert np.abs(np.subtract(picture.getpixel((0, 0)), colour)).max() <= 8


REFUSED = {
    "empty.png": (b"", "cannot be read as a picture"),
    "words.jpg": (b"no picture", "cannot be read as a picture"),
    "cut.jpg": (saved(Image.fromarray(photos.astronaut()), "JPEG")[:9000], "truncated"),
    "drawing.eps": (saved(RED, "EPS"), "cannot be read as a picture"),
    "none.png": (header(0, 0), "cannot be read as a picture"),
    "large.png": (header(9000, 9000), "more than 60 megapixels"),
    "bomb.png": (header(90_000, 90_000), "more than 60 megapixels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_gets_a_sentence(name, tmp_path, recwarn):
    content, sentence = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(regard.UserError, match=sentence) as raised:
        read(tmp_path / name, pixels=PIXELS, longest=KEPT)
    assert str(tmp_path) not in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert not recwarn.list


# ---- a panel


def expected(name, photo, query, head=None, kind="token"):
    """What `draw` makes of the last map of a kind."""
    subject = open_subject(name, size=64)
    found = [one for one in see(subject, subject.prepare([photo]), query).maps if one.kind == kind][-1]
    return draw(found, photo, query=query, head=head, size=DRAWN_AT).image()


def same(a, b):
    """Up to what another number of threads makes of the last bit."""
    return a.size == b.size and np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max() <= 2


def test_a_panel_shows_what_draw_draws(networks, photo):
    pictures = []
    for query, head in (((0.5, 0.5), None), ((0.1, 0.9), None), ((0.1, 0.9), 2)):
        seen = look_into(networks, VIT, AS_IT_IS, None, head, photo, query)
        assert seen.heads == 3
        assert same(seen.drawn, expected(VIT, photo, query, head))
        pictures.append(seen.drawn)
    assert not any(same(a, b) for a, b in pairwise(pictures))
    assert seen.key.startswith("token/blocks.11.attn")
    assert any("head 2. 4 x 4 values" in word for word in seen.sentences)
    assert any(word.startswith("! The weights of this network are random") for word in seen.sentences)
    for site, head in (("nowhere", 7), (None, -1)):  # what is not there stands for what is
        assert look_into(networks, VIT, AS_IT_IS, site, head, photo, (0.1, 0.9)) == look_into(
            networks, VIT, AS_IT_IS, seen.key, None, photo, (0.1, 0.9)
        )


def test_a_panel_shows_evidence_gates_and_an_attached_mechanism(networks, photo):
    seen = look_into(networks, SE, AS_IT_IS, None, 3, photo, (0.5, 0.5))
    assert (seen.heads, seen.key[:8]) == (0, "channel/")
    assert any("is the same for every query location" in word for word in seen.sentences)
    assert not any("bright" in word for word in seen.sentences)
    assert [key for _, key in seen.maps][-len(METHODS) :] == list(METHODS)
    evidence = look_into(networks, SE, AS_IT_IS, "grad-cam", None, photo, (0.5, 0.5))
    assert any("(grad-cam at layer4)" in sentence.lower() for sentence in evidence.sentences)
    attached = look_into(networks, SE, "cbam", None, None, photo, (0.5, 0.5))
    assert any("cbam was attached just now and is untrained" in word for word in attached.sentences)
    assert "regard.cbam" in attached.key
    assert {"cbam", "se"} <= set(attachable())
    assert "glimpse" not in attachable()


def test_what_is_shown_is_escaped():
    assert paragraphs(["! <b>", "<i>"], "<script>") == (
        '<p class="warn">&lt;b&gt;</p><p>&lt;i&gt;</p><p class="fault" role="alert">&lt;script&gt;</p>'
    )


# ---- the command


def test_mistakes_are_one_sentence(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for words, sentence in (
            (["seresnet17"], "there is no model 'seresnet17'"),
            ([SE, "--port", port], f"cannot listen on 127.0.0.1, port {port} (Address already in use): choose another"),
            ([SE, "--port", "70000"], "cannot listen on 127.0.0.1, port 70000"),
            ([SE, VIT, "--weights", "a.safetensors"], "--weights are of one network, and 2 are named"),
            ([SE, "--megabytes", "nan"], "--megabytes is more than 0"),
            ([str(tmp_path)], "holds no comparison"),
        ):
            status = cli.run(["app", *words, *([] if "--port" in words else ["--port", "0"])])
            out, err = capsys.readouterr()
            assert (status, out, len(err.splitlines())) == (2, "", 1), err
            assert sentence in err


def test_a_missing_package_is_named_with_its_extra(capsys, monkeypatch):
    def missing(*words, **options):
        raise ModuleNotFoundError("No module named 'gradio'", name="gradio")

    monkeypatch.setattr(offered_networks, "offers", missing)
    assert cli.run(["app"]) == 2
    assert f"needs the package 'gradio': {install('app')}" in capsys.readouterr().err


# ---- the server


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of the page, served by the command; at the end, Ctrl-C."""
    temporary = tmp_path_factory.mktemp("temporary")
    environment = tiny.ENVIRONMENT | {"TMPDIR": str(temporary)}
    process = tiny.begin("app", VIT, SE, "--size", "64", "--port", "0", "--megabytes", "0.5", env=environment)
    line = process.stdout.readline()
    address = re.match(r"(http://127\.0\.0\.1:\d+)/ ", line)
    assert address, (line, process.communicate())
    yield address[1]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert "Stopped." in err
    assert "Traceback" not in err, err
    assert not [path for path in temporary.rglob("*") if "regard" in path.name or path.suffix in (".png", ".webp")]


def test_ctrl_c_is_quiet_while_a_page_is_open():
    process = tiny.begin("app", "resnet10t", "--size", "32", "--port", "0")
    address = re.match(r"(http://127\.0\.0\.1:\d+)/ ", process.stdout.readline())[1]
    with httpx.stream("GET", f"{address}/gradio_api/heartbeat/0", trust_env=False) as open_page:
        assert open_page.status_code == 200
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err, err


def upload(client, photo):
    """The path that a picture is given; its name cannot leave the folder."""
    (path,) = client.post("/gradio_api/upload", files={"files": ("../../a.png", saved(photo, "PNG"))}).json()
    return path


def test_gives_and_takes_nothing_else(served, photo):
    client = httpx.Client(base_url=served, trust_env=False)
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in (
        "/gradio_api/file=/etc/passwd", "/gradio_api/file=https://example.org/x.png", "/gradio_api/info",
        "/gradio_api/proxy=https://example.org/", "/gradio_api/openapi.json", "/gradio_api/runs", "/docs",
        "/monitoring", "/assets/..%2f..%2f..%2f..%2f..%2fetc/passwd", "/static/%2e%2e/%2e%2e/routes.py",
    ):  # fmt: skip
        assert client.get(path).status_code in (403, 404), path
    for path in ("run/take", "call/take", "api/take", "component_server", "vibe-edit", "process_recording"):
        assert client.post(f"/gradio_api/{path}", json={"data": []}).status_code == 404, path

    config = client.get("/config").json()
    assert {one["api_visibility"] for one in config["dependencies"]} == {"private"}
    take = next(one["id"] for one in config["dependencies"] if ["upload"] in [t[1:] for t in one["targets"]])

    def ask(number, data):
        question = {"fn_index": number, "data": data, "session_hash": "stranger"}
        answer = client.post("/gradio_api/queue/join", json=question)
        if answer.status_code != 200:
            return answer.status_code
        with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "stranger"}) as lines:
            return next(line for line in lines.iter_lines() if "process_completed" in line)

    for strange in (-1, 10**9, None, "0", 1.5, [], True):
        assert ask(strange, []) == 422, strange
    for asked in ([], None, {}, {"fn_index": take}, {"fn_index": take, "data": {}, "session_hash": "x"}, 10**400):
        assert client.post("/gradio_api/queue/join", content=json.dumps(asked)).status_code == 422, asked
    for call in ("cancel", "reset", "queue/join", "upload"):
        for content in (
            b"", b"[]", b"null", b"{", b"[" * 90_000, b'{"session_hash": {}}', b"\xff", b'{"a": NaN}', b'"\\ud800"',
            b'{"session_hash": "x", "fn_index": {}, "event_id": []}', b'{"event_id": "\\ud800"}', b'{"a": ' * 900,
        ):  # fmt: skip
            status = client.post(f"/gradio_api/{call}", content=content).status_code
            assert 400 <= status < 500, (call, content[:20], status)
    for path in ("/etc/passwd", "https://example.org/a.png", "../../etc/passwd", ["/etc/passwd"], "\0"):
        assert ask(take, [{"path": path, "meta": {"_type": "gradio.FileData"}}]) == 403
    show = next(one for one in config["dependencies"] if len(one["inputs"]) == 7)["id"]
    ask(take, [{"path": upload(client, photo), "meta": {"_type": "gradio.FileData"}}])
    for name in ("/etc/model.py:build", "resnet18"):
        assert "there is no network" in ask(show, [None, 50, -900, name, "cbam", 3, {}])
    path = upload(client, photo)
    assert "/regard-app-" in path
    assert '"success":true' in ask(take, [{"path": path, "meta": {"_type": "gradio.FileData"}}])
    assert client.get(f"/gradio_api/file={path}").status_code in (403, 404)  # it is not kept
    for size in (510_000, 900_000):
        large = client.post("/gradio_api/upload", files={"files": ("a.png", b"0" * size)})
        assert large.status_code == 413


def test_other_pages_are_refused(served):
    """Any page in the same browser may send requests here, under a name that leads here."""
    client, port = httpx.Client(base_url=served, trust_env=False), served.rpartition(":")[2]
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "192.0.2.7",
        "",
        "[::2]",
        "localhost@x",
    ):
        for path in ("/", "/config", "/assets/x.js"):
            assert client.get(path, headers={"Host": host}).status_code in (400, 403), host
    for host in ("localhost", f"localhost:{port}", "127.0.0.1:9000", "[::1]:80", "LOCALHOST"):
        assert client.get("/config", headers={"Host": host}).status_code == 200, host
    for origin in ("http://evil.example", "null", f"http://localhost:{port}", "http://127.0.0.1", "file://"):
        for method, path in (("GET", "/config"), ("POST", "/gradio_api/upload"), ("OPTIONS", "/gradio_api/upload")):
            answer = client.request(method, path, headers={"Origin": origin}, files={"files": ("a.png", b"x")})
            assert answer.status_code == 403, (origin, method)
            assert "access-control-allow-origin" not in answer.headers
    assert client.get("/config", headers={"Origin": served}).status_code == 200
    for method in ("OPTIONS", "PUT", "DELETE", "PATCH"):
        assert client.request(method, "/config").status_code == 405


def test_who_sends_slowly_is_dropped(served):
    address = re.match(r"http://(.*):(\d+)", served)
    head = b"POST /gradio_api/%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\nx"
    senders = [
        b"",
        b"GET / HT",
        head % b"upload",
        head % b"queue/join",
        head % b"nothing",
        b"GET / HTTP/1.1\r\nHost: x",
    ]
    open_ones = []
    for sent in senders:
        one = socket.create_connection((address[1], int(address[2])))
        one.sendall(sent)
        open_ones.append(one)
    began = time.monotonic()
    while open_ones and time.monotonic() - began < 40:
        time.sleep(0.5)
        for one in list(open_ones):
            one.setblocking(False)
            try:
                one.sendall(b"x")
                if one.recv(4096) == b"":
                    raise ConnectionError
            except BlockingIOError:
                continue
            except ConnectionError:
                open_ones.remove(one)
                one.close()
    assert not open_ones
    assert httpx.get(served, trust_env=False).status_code == 200


def test_two_visitors_send_the_same_picture(tmp_path, photo):
    pictures = Pictures(remembered=2)
    whole, broken, other = (tmp_path / name for name in ("a.png", "broken.png", "b.png"))
    whole.write_bytes(saved(photo, "PNG"))
    for _ in range(2):
        assert same(pictures.take(whole), photo)
        assert not whole.exists()
    broken.write_bytes(b"nothing")
    for _ in range(2):
        with pytest.raises(regard.UserError, match=r"^This file cannot be read as a picture"):
            pictures.take(broken)
        assert not broken.exists()
    other.write_bytes(saved(photo, "PNG"))
    pictures.take(other)
    with pytest.raises(regard.UserError, match="No such file"):
        pictures.take(whole)  # only the last ones are remembered


class Visit:
    """The page in a browser, with everything that it asked for and all that went wrong in it."""

    def __init__(self, browser, address, **context):
        self.page = browser.new_context(**context).new_page()
        self.page.set_default_timeout(60_000)
        self.asked, self.wrong = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        self.page.goto(address)

    def drop(self, name, content):
        self.page.set_input_files(
            "#upload input[type=file]", {"name": name, "mimeType": "image/png", "buffer": content}
        )

    def source(self, place):
        image = self.page.locator(f"#{place} img")
        return image.get_attribute("src") if image.count() else None

    def drawn(self, place):
        """The picture at a place, as it was served."""
        answer = self.page.request.get(self.page.locator(f"#{place} img").get_attribute("src"))
        return Image.open(io.BytesIO(answer.body())).convert("RGB")

    def until_changed(self, place, before):
        self.page.wait_for_function(
            "([place, before]) => { const image = document.querySelector(`#${place} img`);"
            " return image && image.getAttribute('src') !== before }",
            arg=[place, before],
        )

    def says(self, place, text):
        self.page.locator(f"#{place}").filter(has_text=text).wait_for()

    def choose(self, place, option):
        self.page.locator(f"#{place} input").click()
        self.page.get_by_role("option", name=option, exact=True).click()


@pytest.fixture
def visit(browser, served):
    visits = []

    def new(**context):
        visits.append(Visit(browser, served, **context))
        return visits[-1]

    yield new
    for visit in visits:
        asked = {re.match(r"((blob:)?\w+:(//[^/]+)?)", url)[1] for url in visit.asked}
        assert asked - {"data:", "blob:" + served} == {served}
        visit.page.context.close()


def test_a_picture_a_click_a_head_a_mechanism(visit, photo):
    one = visit(viewport={"width": 1280, "height": 900})
    one.says("words-A", "Waiting for a picture")
    one.drop("photo.png", saved(photo, "PNG"))
    for panel in ("map-A", "map-B"):
        one.until_changed(panel, None)
    assert same(one.drawn("map-A"), expected(VIT, photo, (0.5, 0.5)))
    assert same(one.drawn("map-B"), expected(SE, photo, (0.5, 0.5), kind="channel"))
    assert one.page.locator("#panel-A").bounding_box()["y"] == one.page.locator("#panel-B").bounding_box()["y"]

    before = one.source("map-A")
    box = one.page.locator("#shown img").bounding_box()
    one.page.locator("#shown img").click(position={"x": 0.85 * box["width"], "y": 0.1 * box["height"]})
    one.says("where", "The cross: 10 % from the top, 85 % from the left.")
    one.until_changed("map-A", before)
    assert same(one.drawn("map-A"), expected(VIT, photo, (0.1, 0.85)))

    before = one.source("map-A")
    box = one.page.locator("#map-A img").bounding_box()  # the scale lies on its right
    one.page.locator("#map-A img").click(position={"x": 0.1 * box["width"], "y": 0.9 * box["height"]})
    one.until_changed("map-A", before)
    row, column = map(int, re.findall(r"\d+", one.page.locator("#where p").inner_text()))
    assert (row, column) == pytest.approx((90, 12), abs=1)

    one.choose("head-A", "2")
    one.says("words-A", "head 2. 4 x 4 values")
    assert same(one.drawn("map-A"), expected(VIT, photo, (row / 100, column / 100), head=2))
    assert not one.page.locator("#head-B").is_visible()

    one.page.locator("#row input[type=range]").focus()
    before = one.source("map-A")
    one.page.keyboard.press("Home")
    one.says("where", "The cross: 0 % from the top")
    one.until_changed("map-A", before)

    one.page.locator("#column input[type=number]").fill("")
    one.says("where", "The cross: 0 % from the top, 0 % from the left.")
    one.choose("mechanism-B", "cbam")
    one.says("words-B", "cbam was attached just now and is untrained")
    assert "regard.cbam" in one.page.locator("#key-B input").input_value()
    one.choose("key-B", "evidence (layercam)")
    one.says("words-B", "(LayerCAM at layer4)")
    one.choose("network-B", NOTHING)
    one.page.locator("#map-B img").wait_for(state="hidden")
    assert one.wrong == []


def test_a_broken_file_a_large_one_and_on_it_goes(visit, photo):
    one = visit()
    one.drop("broken.png", b"\x89PNG no picture")
    one.says("trouble", "This file cannot be read as a picture")
    one.drop("bomb.png", header(90_000, 90_000))
    one.says("trouble", "more than 60 megapixels")
    one.drop("large.png", b"0" * 600_000)
    one.page.get_by_text("exceed the maximum allowed size").first.wait_for()
    one.drop("photo.png", saved(photo, "PNG"))
    one.until_changed("map-A", None)
    assert one.page.locator("#trouble").inner_text() == ""


def test_on_a_phone_and_in_the_dark(visit, photo):
    colours = []
    for scheme in ("light", "dark"):
        one = visit(viewport={"width": 390, "height": 844}, color_scheme=scheme)
        one.drop("photo.png", saved(photo, "PNG"))
        one.until_changed("map-B", None)
        assert one.page.evaluate("document.documentElement.scrollWidth") <= 390
        first, second = (one.page.locator(f"#panel-{letter}").bounding_box() for letter in "AB")
        assert first["y"] + first["height"] <= second["y"]
        assert first["width"] > 300
        colours.append(one.page.evaluate("getComputedStyle(document.querySelector('.warn')).color"))
    assert len(set(colours)) == 2


def test_a_dark_scan_is_as_dark_as_in_training(tmp_path):
    dark = np.full((40, 40), 700, np.uint16)
    Image.fromarray(dark).save(tmp_path / "dark.tif")
    networks = Networks({"other": Offer(fails), "scans": Offer(fails, peak=4095)})
    assert networks.peak == 4095
    taken = Pictures(networks.peak).take(tmp_path / "dark.tif")
    assert np.asarray(taken).max() == round(700 * 255 / 4095)


def fails():
    raise AssertionError("no network is opened for a picture")
