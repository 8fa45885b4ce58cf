// Vendors that go wrong: for each way, what the first page and the vendor's own show without a click, and that the button there mends it.
// And vendor data that tries to be more than text.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { assertAccessible, assertNoFaults, eventually, GOOD, world } from "./world.mjs";
import { NAMES, vendorsThatGoWrong } from "./wrong.mjs";

const JOBS = 6;

describe("a vendor that", () => {
  let wrong;
  let site;
  let page;
  before(async () => {
    wrong = await vendorsThatGoWrong();
    site = await world("open", `${GOOD}${wrong.config}`);
    await site.ended(await site.submit("good"), "complete");
    page = await site.open("#/");
    for (const vendor of NAMES) {
      for (let i = 0; i < JOBS; i++) await site.submit(vendor, { i });
    }
  });
  after(async () => {
    await site?.stop();
    wrong?.stop();
  });

  const need = (on, name) => on.locator("li.need", { has: on.getByRole("link", { name, exact: true }) });
  const failure = (on, name) => on.locator("table.groups tr", { has: on.getByRole("link", { name, exact: true }) });
  const allDone = (name, jobs = JOBS) =>
    eventually(
      `all of ${name} are done`,
      async () => (await site.api("GET", `/jobs?vendor=${name}&status=complete`)).jobs.length >= jobs,
    );
  /** Its own page, which says the same. */
  const ownPage = async (name) => {
    const own = await site.open(`#/vendors/${name}`);
    await own.getByText("Newest jobs").waitFor();
    return own;
  };

  /** The first page has it among those that need somebody, with these words, and so has its own. When it is well, the button has its jobs done. */
  const isMendedByOneButton = async (name, button, ...words) => {
    const own = await ownPage(name);
    for (const on of [page, own]) {
      for (const word of words) await need(on, name).filter({ hasText: word }).waitFor();
      await need(on, name)
        .getByRole("button", { name: `${button}: ${name}` })
        .waitFor();
    }
    const before = wrong.calls(name);
    await need(own, name).getByRole("button", { name: button }).click();
    await eventually(`${name} is tried at once`, () => wrong.calls(name) > before);
    await need(own, name).waitFor();
    wrong.heal(name);
    await need(page, name).getByRole("button", { name: button }).click();
    await need(page, name).waitFor({ state: "detached" });
    await need(own, name).waitFor({ state: "detached" });
    // Those that were asked to slow down wait for their own time too.
    await allDone(name, name === "throttling" ? JOBS - 2 : JOBS);
    assertNoFaults(own);
    await own.context().close();
  };

  /** The first page has its jobs among what failed, with these words, and so has its own, above its chart. When it is well, they are replayed. */
  const isMendedByReplay = async (name, code, ...words) => {
    await failure(page, name).filter({ hasText: code }).waitFor();
    const own = await ownPage(name);
    for (const on of [page, own]) {
      for (const word of words) await failure(on, name).filter({ hasText: word }).waitFor();
    }
    const [first, chart] = await Promise.all([failure(own, name).boundingBox(), own.locator("section.sent").boundingBox()]);
    assert.ok(first.y < chart.y, "what failed comes first");
    await own.context().close();
    wrong.heal(name);
    await failure(page, name)
      .getByRole("button", { name: `Replay jobs of ${name} with ${code}` })
      .click();
    await page.getByRole("dialog").getByRole("button", { name: "Count them" }).click();
    await page
      .getByRole("dialog")
      .getByRole("button", { name: `Replay ${JOBS} jobs` })
      .click();
    await failure(page, name).waitFor({ state: "detached" });
    await allDone(name);
  };

  test("has not failed yet is shown with what its jobs wait for", async () => {
    const row = (name) => page.getByRole("row", { name: new RegExp(`^${name} `) });
    await row("slow").filter({ hasText: "all 2 calls in flight" }).waitFor();
    await row("silent")
      .filter({ hasText: `${JOBS} accepted, unanswered` })
      .waitFor();
  });

  test("is slow is shown among what failed; a replay mends it", async () => {
    await isMendedByReplay("slow", "timeout", "did not reply in time", "When it is well again, replay");
  });

  test("does not call back is shown among what failed; a replay mends it", async () => {
    await isMendedByReplay("silent", "no_answer", "did not answer in time", "callbacks reach server.public_url");
  });

  test("answers 422 is shown among what failed, with its words one click away; a replay mends it", async () => {
    const example = failure(page, "picky").getByRole("link", { name: "an example" });
    const words = await site.open(await example.getAttribute("href"));
    await words.getByText("no such customer").first().waitFor();
    await words.context().close();
    await isMendedByReplay("picky", "vendor_refused", "the vendor answered 422", "Mend what sends them");
  });

  test("is down is shown as failing, with why and when it is tried next; a button tries it", async () => {
    await isMendedByOneButton("down", "Try now", "failing", "connection", "next try", `${JOBS} waiting`);
  });

  test("refuses our credentials is shown with its answer and what to do; a button tries it", async () => {
    await isMendedByOneButton("locked", "Try now", "credentials refused", "The vendor said 401", "Put the right secret in place");
  });

  test("throttles is shown with when it goes on; a button calls it at once", async () => {
    await isMendedByOneButton("throttling", "Call now", "slowed by vendor", /goes on in \d min/, "The vendor said 429");
  });

  test("somebody has paused is shown with who did, since when, and resumed by the button", async () => {
    await site.api("POST", "/vendors/good/pause", { for: "1h" });
    await need(page, "good").filter({ hasText: "by anonymous" }).filter({ hasText: "goes on in" }).waitFor();
    await need(page, "good").getByRole("button", { name: "Resume: good" }).click();
    await need(page, "good").waitFor({ state: "detached" });
    assertNoFaults(page);
  });
});

describe("six vendors that go wrong at once", () => {
  let wrong;
  let site;
  before(async () => {
    wrong = await vendorsThatGoWrong();
    site = await world("open", wrong.config);
  });
  after(async () => {
    await site?.stop();
    wrong?.stop();
  });

  test("are all on the first page, which can be read and used on a phone too", async () => {
    for (const vendor of NAMES) for (let i = 0; i < JOBS; i++) await site.submit(vendor);
    for (const [width, colorScheme] of [
      [1280, "light"],
      [390, "dark"],
    ]) {
      const page = await site.open("#/", { width, colorScheme });
      for (const name of ["locked", "throttling"]) await page.locator("li.need", { hasText: name }).waitFor();
      for (const code of ["timeout", "no_answer", "vendor_refused"])
        await page.locator("table.groups", { hasText: code }).waitFor({ timeout: 30000 });
      await assertAccessible(page, `all troubles at once ${width} ${colorScheme}`);
      assertNoFaults(page);
      await page.context().close();
    }
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
