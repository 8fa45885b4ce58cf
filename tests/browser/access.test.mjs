// Logging in: what a key opens, where it is kept, and what becomes of the page when it is not good any more.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { assertAccessible, assertNoFaults, eventually, KINDS, world } from "./world.mjs";

for (const kind of KINDS.filter((kind) => kind !== "open")) describe(`with keys on, ${kind}`, () => {
  let site;
  before(async () => (site = await world(kind)));
  after(() => site?.stop());

  const logIn = async (page, key) => {
    await page.getByLabel("Key").fill(key);
    await page.getByRole("button", { name: "Log in" }).click();
  };
  const makeKey = async (body) => site.api("POST", "/keys", body);
  const pending = async () => site.submit("good", {}, { not_before: "1h", tenant: "acme" });

  test("nothing is shown without a key, and a wrong one is refused", async () => {
    const page = await site.open("#/", { key: null });
    await page.getByRole("heading", { name: "Log in" }).waitFor();
    assert.equal(await page.evaluate(() => document.activeElement.id), "key");
    await assertAccessible(page, "the form");
    await logIn(page, "fg_wrong");
    await page.getByRole("alert").filter({ hasText: "This key is not good" }).waitFor();
    await logIn(page, site.key);
    await page.locator(".tile").first().waitFor();
    const kept = await page.evaluate(
      (key) => ({ local: JSON.stringify(localStorage).includes(key), url: location.href.includes(key), cookie: document.cookie }),
      site.key,
    );
    assert.deepEqual(kept, { local: false, url: false, cookie: "" });
    await page.getByRole("button", { name: "Log out" }).click();
    await page.getByRole("heading", { name: "Log in" }).waitFor();
    assert.equal(await page.evaluate(() => sessionStorage.getItem("fetchgate.key")), null);
    assertNoFaults(page, 401);
    await page.context().close();
  });

  test("a key that is deleted logs its page out", async () => {
    const made = await makeKey({ name: "short-lived", tenant: "acme", scopes: ["read"] });
    const page = await site.open("#/jobs", { key: made.key });
    await page.getByRole("heading", { name: "Jobs" }).waitFor();
    await site.api("DELETE", `/keys/${made.id}`);
    await page.getByRole("heading", { name: "Log in" }).waitFor();
    await page.getByText("This key is not good").waitFor();
    assertNoFaults(page, 401);
    await page.context().close();
  });

  test("a tenant's key shows its own jobs, and says what it is not for", async () => {
    const own = await pending();
    const others = await site.submit("good", {}, { not_before: "1h", tenant: "other" });
    const { key } = await makeKey({ name: "of-acme", tenant: "acme", scopes: ["read"] });
    const page = await site.open("#/", { key });
    await page.locator(".tile", { hasText: "Waiting" }).waitFor();
    assert.equal(await page.locator(".tile", { hasText: "Breaches" }).count(), 0);
    await page.goto(`${site.url}/#/jobs`);
    await page.getByText("1 job; that is all.").waitFor();
    await page.goto(`${site.url}/#/jobs/${others}`);
    await page.getByRole("heading", { name: "No such job" }).waitFor();
    await page.goto(`${site.url}/#/vendors/good`);
    await page.getByRole("button", { name: "Pause good" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Pause" }).click();
    await page.getByRole("dialog").getByRole("alert").filter({ hasText: "operate" }).waitFor();
    await page.keyboard.press("Escape");
    await page.goto(`${site.url}/#/jobs/${own}`);
    await page.getByRole("button", { name: "Cancel …" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Cancel the job" }).click();
    await page.getByRole("dialog").getByRole("alert").filter({ hasText: "submit" }).waitFor();
    await page.keyboard.press("Escape");
    await page.goto(`${site.url}/#/system`);
    await page.locator("#problem", { hasText: "operate" }).waitFor();
    assertNoFaults(page, 403, 404);
    await page.context().close();
  });

  test("a tenant's key reads every page and does with its own jobs what it may, in bulk too", async () => {
    const tags = ["of-both"];
    const others = await site.submit("good", {}, { not_before: "1h", tenant: "other", tags });
    const { key } = await makeKey({ name: "app-of-acme", tenant: "acme", scopes: ["read", "submit"] });
    const mine = async (more) => (await site.api("POST", "/jobs", { vendor: "good", payload: {}, tags, ...more }, key)).request_id;
    const status = async (id) => (await site.api("GET", `/jobs/${id}`)).status;
    const own = [await mine({ not_before: "1h" }), await mine({ not_before: "1h" })];
    await site.ended((await site.api("POST", "/jobs", { vendor: "picky", payload: {} }, key)).request_id, "failed");
    const page = await site.open("#/", { key, width: 390 });
    for (const [hash, text] of [
      ["#/", "Failed in the last hour"],
      ["#/vendors", "being called"],
      ["#/vendors/good", "Newest jobs"],
      ["#/jobs", "that is all"],
      [`#/jobs/${own[0]}`, "What happened"],
      ["#/failures", "ended without a result"],
    ]) {
      await page.evaluate((hash) => (location.hash = hash), hash);
      await page.locator("main", { hasText: text }).waitFor();
      await assertAccessible(page, `${hash} of a tenant`);
    }
    assertNoFaults(page);
    await page.evaluate(() => (location.hash = "#/vendors/good"));
    await page.getByText("Newest jobs").waitFor();
    assert.equal(await page.getByText("Breaches").count(), 0, "what is of all tenants is not shown, and not as nothing");
    await page.getByRole("button", { name: "Test job …" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Send it" }).click();
    await page.locator(".headline", { hasText: "complete" }).waitFor();
    await page.evaluate(() => (location.hash = "#/jobs?tag=of-both"));
    await page.getByText("2 jobs; that is all.").waitFor();
    await page.getByRole("button", { name: "Cancel all that match …" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Count them" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Cancel 2 jobs" }).click();
    await page.getByText("2 jobs cancelled.").waitFor();
    for (const id of own) assert.equal(await status(id), "cancelled");
    assert.equal(await status(others), "pending", "another tenant's job");
    await page.evaluate((id) => (location.hash = `#/jobs/${id}`), own[0]);
    await page.getByRole("button", { name: "Replay", exact: true }).click();
    await eventually("it runs again", async () => (await status(own[0])) !== "cancelled");
    await page.evaluate((id) => (location.hash = `#/jobs/${id}`), own[1]);
    await page.getByRole("button", { name: "Erase …" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Erase it" }).click();
    await page.waitForURL(/#\/jobs$/);
    await assert.rejects(status(own[1]), /404/);
    assertNoFaults(page);
    await page.context().close();
  });

  test("an operator's key pauses, resumes and sees the system; one that only submits is told what it lacks", async () => {
    const operator = await makeKey({ name: "on-call", scopes: ["read", "operate"] });
    const page = await site.open("#/vendors/good", { key: operator.key });
    await page.getByRole("button", { name: "Pause good" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Pause" }).click();
    await page.getByText("by on-call").waitFor();
    await page.getByRole("button", { name: "Resume: good" }).click();
    await page.getByRole("button", { name: "Pause good" }).waitFor();
    await page.evaluate(() => (location.hash = "#/system"));
    await page.getByRole("heading", { name: "Processes" }).waitFor();
    await assertAccessible(page, "the system");
    assertNoFaults(page);
    await page.context().close();
    const submits = await makeKey({ name: "app", tenant: "acme", scopes: ["submit"] });
    const blind = await site.open("#/", { key: submits.key, width: 390, colorScheme: "dark" });
    for (const hash of ["#/", "#/vendors", "#/vendors/good", "#/jobs", "#/failures", "#/system"]) {
      await blind.evaluate((hash) => (location.hash = hash), hash);
      await blind.locator("#problem", { hasText: hash === "#/system" ? "operate" : "read" }).waitFor();
      await assertAccessible(blind, `${hash} without the scope`);
    }
    assertNoFaults(blind, 403);
    await blind.context().close();
  });

  test("streams carry the key in a header and never in an address", async () => {
    const watched = await site.open("#/");
    const asked = [];
    watched.on("request", (request) => asked.push(request));
    const id = await pending();
    await watched.evaluate((id) => (location.hash = `#/jobs/${id}`), id);
    await eventually("the stream is opened", () => asked.some((request) => request.url().endsWith(`/jobs/${id}/events`)));
    const stream = asked.find((request) => request.url().endsWith("/events"));
    assert.equal((await stream.allHeaders()).authorization, `Bearer ${site.key}`);
    assert.ok(asked.every((request) => !request.url().includes(site.key)));
    await site.api("POST", `/jobs/${id}/cancel`);
    await watched.locator(".headline", { hasText: "cancelled" }).waitFor();
    assertNoFaults(watched);
    await watched.context().close();
  });
});
