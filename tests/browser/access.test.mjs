// Logging in: what a key opens, where it is kept, and what becomes of the page when it is not good any more.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { assertAccessible, assertNoFaults, eventually, world } from "./world.mjs";

describe("with keys on", () => {
  let site;
  before(async () => (site = await world("keyed")));
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
