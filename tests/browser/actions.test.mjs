// Everything that can be done from a page, done there and looked for in the API; the first of them with the keyboard alone.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { after, before, describe, test } from "node:test";
import { assertAccessible, assertNoFaults, eventually, KINDS, press, world } from "./world.mjs";

for (const kind of KINDS) {
  describe(`a service that is ${kind}`, () => {
    let site;
    before(async () => (site = await world(kind)));
    after(() => site?.stop());

    const vendor = async (name) => site.api("GET", `/vendors/${name}`);
    const job = async (id) => site.api("GET", `/jobs/${id}`);
    const button = (page, name) => page.getByRole("button", { name, exact: true });
    const inDialog = (page, name) => page.getByRole("dialog").getByRole("button", { name });
    const done = async (page, ...statuses) => {
      assertNoFaults(page, ...statuses);
      await page.context().close();
    };

    test("a vendor is paused and resumed with the keyboard alone", async () => {
      const page = await site.open("#/vendors/good");
      await button(page, "Pause good").waitFor();
      await press(page, "Pause good");
      await page.getByRole("dialog").waitFor();
      await assertAccessible(page, "the dialog");
      assert.ok(await page.evaluate(() => document.activeElement.closest("dialog") != null), "the focus is in the dialog");
      await page.keyboard.press("Escape");
      await page.getByRole("dialog").waitFor({ state: "detached" });
      assert.equal(
        await page.evaluate(() => document.activeElement.getAttribute("aria-label")),
        "Pause good",
        "the focus is back",
      );
      await page.keyboard.press("Enter");
      await page.getByLabel("For how long").selectOption("1h");
      await page.getByLabel("For how long").press("Tab");
      await page.keyboard.press("Enter");
      await eventually("it is paused", async () => (await vendor("good")).paused_until != null);
      await page.getByText("Somebody has paused it.").waitFor();
      await press(page, "Resume: good");
      await eventually("it is resumed", async () => !(await vendor("good")).paused);
      await button(page, "Pause good").waitFor();
      await done(page);
    });

    test("limits are changed, refused with a reason, and restored", async () => {
      const page = await site.open("#/vendors/hook");
      await page.getByRole("button", { name: "Limits …" }).click();
      const area = page.getByLabel("Limits, as JSON");
      await area.fill('["fast"]');
      await inDialog(page, "Set these limits").click();
      await page.getByRole("dialog").getByRole("alert").filter({ hasText: "/limits/0" }).waitFor();
      await area.fill('["7/s"], "x": 1');
      await inDialog(page, "Set these limits").click();
      await page.getByRole("dialog").getByRole("alert").filter({ hasText: "one JSON array" }).waitFor();
      await area.fill('["7/s"]');
      await inDialog(page, "Set these limits").click();
      await page.getByRole("row", { name: /7\/s/ }).waitFor();
      assert.equal((await site.api("GET", "/vendors/hook/limits")).source, "live");
      await page.getByRole("button", { name: "Limits …" }).click();
      await inDialog(page, "Use those of the file again").click();
      await page.getByRole("row", { name: /20\/s/ }).waitFor();
      assert.equal((await site.api("GET", "/vendors/hook/limits")).source, "file");
      await done(page, 422);
    });

    test("a test job is sent, and its page follows it to its end", async () => {
      const page = await site.open("#/vendors/hook");
      await page.getByRole("button", { name: "Test job …" }).click();
      await page.getByLabel("Payload, as JSON").fill('{"n": 1.50}, "tenant": "x"');
      await inDialog(page, "Send it").click();
      await page.getByRole("dialog").getByRole("alert").filter({ hasText: "one JSON value" }).waitFor();
      await page.getByLabel("Payload, as JSON").fill('{"n": 1.50}');
      await inDialog(page, "Send it").click();
      await page.waitForURL(/#\/jobs\//);
      await page.locator(".headline", { hasText: "complete" }).waitFor();
      await page.getByText("The vendor called back").waitFor();
      assert.equal(await page.locator(".json", { hasText: "Payload" }).locator(".number").first().textContent(), "1.50");
      await done(page);
    });

    test("a job is cancelled, replayed and erased", async () => {
      await site.api("POST", "/vendors/good/pause");
      const id = await site.submit("good");
      const page = await site.open(`#/jobs/${id}`);
      await page.getByText("Its vendor is paused.").first().waitFor();
      await button(page, "Cancel …").click();
      await inDialog(page, "Leave it").click();
      assert.equal((await job(id)).status, "pending");
      await button(page, "Cancel …").click();
      await inDialog(page, "Cancel the job").click();
      await page.locator(".headline", { hasText: "cancelled" }).waitFor();
      await button(page, "Replay").click();
      await page.locator(".headline", { hasText: "pending" }).waitFor();
      await button(page, "Resume: good").click();
      await page.locator(".headline", { hasText: "complete" }).waitFor();
      await button(page, "Erase …").click();
      await inDialog(page, "Erase it").click();
      await page.waitForURL(/#\/jobs$/);
      await assert.rejects(job(id), /404/);
      await done(page);
    });

    test("the command that is copied submits the same job", async () => {
      const payload = `{"text": "it's \\"quoted\\" $HOME \`id\`", "n": 1.000000000000000000001}`;
      const { request_id: id } = await site.api(
        "POST",
        "/jobs",
        `{"vendor": "good", "tags": ["a'b"], "priority": "high", "payload": ${payload}}`,
      );
      const page = await site.open(`#/jobs/${id}`);
      await button(page, "Copy as curl").click();
      await page.getByText("Command copied.").waitFor();
      const command = await page.evaluate(() => navigator.clipboard.readText());
      assert.ok(!site.key || !command.includes(site.key), "the key is not in it");
      const said = execFileSync("sh", ["-c", `${command} --silent`], { env: { ...process.env, FETCHGATE_KEY: site.key ?? "" } });
      const again = (
        await fetch(`${site.url}/jobs/${JSON.parse(said).request_id}?include=payload`, {
          headers: site.key ? { authorization: `Bearer ${site.key}` } : {},
        })
      ).text();
      const text = await again;
      assert.ok(text.includes(payload) && text.includes('"high"') && text.includes(`["a'b"]`), text);
      await done(page);
    });

    test("a result webhook is sent again", async () => {
      const callback = `${site.mocks}/sync/receiver`;
      const id = await site.submit("good", {}, { callback_url: callback });
      await site.ended(id, "complete");
      const page = await site.open(`#/jobs/${id}`);
      await page.locator("section", { hasText: "Result webhook" }).getByText("delivered").waitFor();
      const before = await site.calls("receiver");
      await page.getByRole("button", { name: "Send it again" }).click();
      await eventually("it has come again", async () => (await site.calls("receiver")) > before);
      await done(page);
    });

    test("many jobs are counted first, then cancelled and replayed", async () => {
      await site.api("POST", "/vendors/good/pause");
      for (let i = 0; i < 5; i++) await site.submit("good", { i }, { tags: ["bulk"] });
      const other = await site.submit("good", {}, { tags: ["other"] });
      const page = await site.open("#/jobs?tag=bulk");
      await page.getByText("5 jobs; that is all.").waitFor();
      await page.getByRole("button", { name: "Cancel all that match …" }).click();
      await inDialog(page, "Count them").click();
      await page.getByText("5 jobs would be cancelled.").waitFor();
      await assertAccessible(page, "the count");
      assert.equal((await site.api("GET", "/jobs?tag=bulk&status=pending")).jobs.length, 5, "nothing is changed by counting");
      await inDialog(page, "Cancel 5 jobs").click();
      await page.getByText("5 jobs cancelled.").waitFor();
      assert.equal((await site.api("GET", "/jobs?tag=bulk&status=cancelled")).jobs.length, 5);
      assert.equal((await job(other)).status, "pending");
      await page.getByRole("button", { name: "Replay all that match …" }).click();
      await inDialog(page, "Count them").click();
      await inDialog(page, "Replay 5 jobs").click();
      await page.getByText("5 jobs replayed.").waitFor();
      await site.api("POST", "/vendors/good/resume");
      await eventually("all are done", async () => (await site.api("GET", "/jobs?tag=bulk&status=complete")).jobs.length === 5);
      await done(page);
    });

    test("a group of failures is replayed from where it is shown", async () => {
      const id = await site.submit("picky");
      await site.ended(id, "failed");
      const page = await site.open("#/failures?vendor=picky");
      await page.getByRole("button", { name: "Replay jobs of picky with vendor_refused" }).click();
      await inDialog(page, "Count them").click();
      await inDialog(page, /^Replay \d+ jobs?$/).click();
      await page.getByText(/\d+ jobs? replayed\./).waitFor();
      await eventually("it was called again", async () => (await job(id)).attempts === 2);
      await done(page);
    });

    test("jobs are found by id, vendor and tag, and the list follows what happens", async () => {
      const id = await site.submit("good", {}, { tags: ["of-search"] });
      await site.ended(id, "complete");
      const page = await site.open("#/");
      const find = async (text) => {
        await page.locator("body").press("/");
        assert.equal(await page.evaluate(() => document.activeElement.name), "q");
        await page.keyboard.type(text);
        await page.keyboard.press("Enter");
      };
      await find(id);
      await page.locator("h1", { hasText: id }).waitFor();
      await find("polled");
      await page.locator("h1", { hasText: "polled" }).waitFor();
      await find("of-search");
      await page.getByText("1 job; that is all.").waitFor();
      await site.submit("good", {}, { tags: ["of-search"] });
      await page.getByText("2 jobs; that is all.").waitFor();
      await page.getByLabel("Status").selectOption("failed");
      await page.getByRole("button", { name: "Search", exact: true }).click();
      await page.getByText("No job matches.").waitFor();
      assert.match(page.url(), /status=failed.*tag=of-search/);
      await done(page);
    });
  });
}
