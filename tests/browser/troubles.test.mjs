// Vendors that go wrong: for each way, what the first page shows without a click, and that the button there mends it. And vendor
// data that tries to be more than text.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { assertAccessible, assertNoFaults, eventually, TROUBLED, world } from "./world.mjs";

describe("a vendor that", () => {
  let site;
  let page;
  before(async () => {
    site = await world("open", TROUBLED);
    await site.ended(await site.submit("good"), "complete");
    for (const vendor of ["down", "slow", "locked", "picky", "silent", "throttling"]) {
      for (let i = 0; i < 6; i++) await site.submit(vendor, { i });
    }
    page = await site.open("#/");
  });
  after(() => site?.stop());

  const need = (name) => page.locator("li.need", { has: page.getByRole("link", { name, exact: true }) });
  const failure = (name, code) => page.locator("table.groups tr", { hasText: name }).filter({ hasText: code });

  /** It is shown as one that needs somebody, with these words; its button has it called again at once. */
  const isMended = async (name, button, ...words) => {
    for (const word of words) await need(name).filter({ hasText: word }).waitFor();
    const before = await site.calls(name);
    await need(name)
      .getByRole("button", { name: `${button}: ${name}` })
      .click();
    await eventually(`${name} is called`, async () => (await site.calls(name)) > before);
  };

  test("is down is shown as failing, with why, and tried at once by the button", async () => {
    await isMended("down", "Try now", "failing", "connection", "next try", "waiting");
  });

  test("refuses our credentials is shown with its answer, and tried at once by the button", async () => {
    await isMended("locked", "Try now", "credentials refused", "The vendor said 401", "next try");
  });

  test("throttles is shown with when it goes on, and called at once by the button", async () => {
    await isMended("throttling", "Call now", "slowed by vendor", "goes on in", "429");
  });

  test("answers 422 is shown among what failed, with its words one click away", async () => {
    await failure("picky", "vendor_refused").filter({ hasText: "422" }).waitFor();
    await failure("picky", "vendor_refused")
      .getByRole("button", { name: /^Replay jobs of picky/ })
      .waitFor();
  });

  test("is slow is shown among what failed, as timed out", async () => {
    await failure("slow", "timeout").waitFor();
  });

  test("does not call back is shown among what failed, with what to ask the vendor", async () => {
    await failure("silent", "no_answer").filter({ hasText: "callbacks reach server.public_url" }).waitFor();
  });

  test("somebody has paused is shown with who did, since when, and resumed by the button", async () => {
    await site.api("POST", "/vendors/good/pause", { for: "1h" });
    await need("good").filter({ hasText: "by anonymous" }).filter({ hasText: "goes on in" }).waitFor();
    await assertAccessible(page, "all troubles at once");
    await need("good").getByRole("button", { name: "Resume: good" }).click();
    await need("good").waitFor({ state: "detached" });
    assertNoFaults(page);
  });
});

describe("data that tries to be more than text", () => {
  const MARKUP = "<img src=x onerror=window.pwned=1><script>window.pwned=1</script>\u202e";
  const body = encodeURIComponent(JSON.stringify({ error: MARKUP }));
  const vendors = `
[vendors.rude]
kind = "sync"
url = "MOCKS/sync/rude?status=422&body=${body}"
limits = ["50/s"]
[vendors.echo]
kind = "sync"
url = "MOCKS/sync/echo"
limits = ["50/s"]
[vendors.hook]
kind = "webhook"
url = "MOCKS/async/hook?callback=never&status=202&body=${encodeURIComponent(JSON.stringify({ id: MARKUP }))}"
limits = ["50/s"]
webhook = { verify = "none", ticket = "/id" }
`;
  let site;
  before(async () => (site = await world("open", vendors)));
  after(() => site?.stop());

  test("stays text on every page", async () => {
    const tags = ["<b onclick=alert(1)>bold</b>"];
    const failed = await site.submit("rude", { [MARKUP]: MARKUP }, { tags });
    const done = await site.submit("echo", { [MARKUP]: MARKUP }, { tags });
    const waiting = await site.submit("hook", { [MARKUP]: MARKUP }, { tags });
    await site.ended(failed, "failed");
    await site.ended(done, "complete");
    const page = await site.open("#/");
    const shown = [
      ["#/", "422"],
      ["#/jobs", tags[0]],
      [`#/jobs?tag=${encodeURIComponent(tags[0])}`, tags[0]],
      [`#/jobs/${failed}`, "<img src=x"],
      [`#/jobs/${done}`, "<script>window.pwned"],
      [`#/jobs/${waiting}`, "<img src=x"],
      ["#/vendors/rude", "<img src=x"],
      ["#/failures", "422"],
      [`#/jobs/${encodeURIComponent(MARKUP)}`, "No such job"],
      [`#/vendors/${encodeURIComponent("<b>x</b>")}`, "<b>x</b>"],
    ];
    for (const [hash, text] of shown) {
      await page.evaluate((hash) => (location.hash = hash), hash);
      await page.locator("main", { hasText: text }).waitFor();
      assert.equal(await page.locator("main img, main script, main b[onclick]").count(), 0, hash);
    }
    assert.equal(await page.evaluate(() => window.pwned), undefined);
    assertNoFaults(page, 404, 422);
    await page.context().close();
  });

  test("keeps every digit, every escape and the order of its keys", async () => {
    const payload =
      '{"z":1.00,"a":12345678901234567890.10,"e":1E+400,"s":"\\u0041\\/\\ud83d","d":{"x":1,"x":2},"l":[[],{},-0,true,null]}';
    const { request_id: id } = await site.api("POST", "/jobs", `{"vendor": "echo", "payload": ${payload}}`);
    const page = await site.open(`#/jobs/${id}`);
    for (const label of ["Payload", "Result"]) {
      const tree = page.locator(".json", { hasText: label });
      await tree.waitFor();
      const text = await tree.locator(".json-body").textContent();
      for (const part of [
        '"z": 1.00',
        '"a": 12345678901234567890.10',
        '"e": 1E+400',
        '"s": "\\u0041\\/\\ud83d"',
        '"x": 1',
        '"x": 2',
        "0: []",
        "1: {}",
        "2: -0",
        "3: true",
        "4: null",
      ]) {
        assert.ok(text.includes(part), `${label} lacks ${part}: ${text}`);
      }
    }
    await page.locator(".json", { hasText: "Payload" }).getByRole("button", { name: "Copy" }).click();
    await page.getByText("Payload copied.").waitFor();
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), payload);
    assertNoFaults(page);
    await page.context().close();
  });

  test("can be very long and very deep", async () => {
    const deep = "[".repeat(120) + "]".repeat(120);
    const long = `[${Array.from({ length: 50000 }, (_, i) => `{"i":${i},"text":"${"x".repeat(20)}"}`).join(",")}]`;
    const { request_id: id } = await site.api(
      "POST",
      "/jobs",
      `{"vendor": "echo", "payload": {"deep": ${deep}, "long": ${long}}}`,
    );
    const page = await site.open(`#/jobs/${id}`);
    const tree = page.locator(".json", { hasText: "Payload" });
    await tree.locator("summary").first().click();
    await tree.getByText('"long": ').click();
    await tree.getByRole("button", { name: "Show 100 more" }).waitFor();
    const nodes = await page.evaluate(() => document.querySelectorAll("*").length);
    assert.ok(nodes < 3000, String(nodes));
    await tree.getByRole("button", { name: "Show 100 more" }).click();
    await tree.getByText("199: ").waitFor();
    assertNoFaults(page);
    await page.context().close();
  });
});
