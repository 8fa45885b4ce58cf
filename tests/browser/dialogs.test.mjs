// Every dialog, opened, left and used with the keyboard alone, in both themes and widths: no serious finding of axe while it is open.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { assertAccessible, assertNoFaults, LOOKS, press, world } from "./world.mjs";

describe("a dialog", () => {
  let site;
  let jobs;
  before(async () => {
    site = await world("open");
    jobs = { waiting: await site.submit("good", {}, { not_before: "1h" }), ended: await site.submit("picky") };
    await site.ended(jobs.ended, "failed");
  });
  after(() => site?.stop());

  /** Where each is, the button that opens it, and what its own button says. */
  const dialogs = () => [
    ["#/vendors/good", "Pause good", "Pause"],
    ["#/vendors/good", "Limits …", "Set these limits"],
    ["#/vendors/good", "Test job …", "Send it"],
    ["#/vendors/good", "Cancel its jobs …", "Count them"],
    ["#/jobs", "Replay all that match …", "Count them"],
    [`#/jobs/${jobs.waiting}`, "Cancel …", "Cancel the job"],
    [`#/jobs/${jobs.ended}`, "Erase …", "Erase it"],
    ["#/failures", "Replay jobs of picky with vendor_refused", "Count them"],
  ];

  for (const [width, colorScheme] of LOOKS) {
    test(`can be read, and left with the focus where it was: ${width} ${colorScheme}`, async () => {
      const page = await site.open("#/", { width, colorScheme });
      for (const [hash, opens, button] of dialogs()) {
        await page.evaluate((hash) => (location.hash = hash), hash);
        await page.getByRole("button", { name: opens, exact: true }).waitFor();
        await press(page, opens);
        await page.getByRole("dialog").getByRole("button", { name: button, exact: true }).waitFor();
        await assertAccessible(page, `${opens} ${width} ${colorScheme}`);
        assert.ok(await page.evaluate(() => document.activeElement.closest("dialog") != null), `${opens}: the focus is in it`);
        await page.keyboard.press("Escape");
        await page.getByRole("dialog").waitFor({ state: "detached" });
        const focused = await page.evaluate(
          () => document.activeElement.getAttribute("aria-label") ?? document.activeElement.textContent,
        );
        assert.equal(focused, opens, "the focus is back");
      }
      assertNoFaults(page);
      await page.context().close();
    });
  }

  test("shows a text to be copied by hand where the browser does not let us copy", async () => {
    const page = await site.open(`#/jobs/${jobs.waiting}`);
    await page.evaluate(() => (navigator.clipboard.writeText = () => Promise.reject(new Error("not allowed"))));
    await press(page, "Copy as curl");
    await page.getByRole("dialog").getByLabel("Command").waitFor();
    await assertAccessible(page, "a text to be copied");
    await page.keyboard.press("Escape");
    await page.getByRole("dialog").waitFor({ state: "detached" });
    await page.context().close();
  });

  test("is used without a mouse, as is all else: a job is found, cancelled and replayed, and a theme chosen", async () => {
    const page = await site.open("#/");
    await page.locator(".tile").first().waitFor();
    await press(page, "Jobs");
    await page.getByLabel("Status").waitFor();
    await page.getByLabel("Status").focus();
    await page.keyboard.type("pending");
    await page.keyboard.press("Enter");
    await press(page, "Search");
    await page.getByText("1 job; that is all.").waitFor();
    await press(page, `${jobs.waiting.slice(0, 8)}…${jobs.waiting.slice(-6)}`);
    await page.getByRole("button", { name: "Cancel …" }).waitFor();
    await press(page, "Cancel …");
    await page.getByRole("dialog").waitFor();
    await page.keyboard.press("Enter");
    await page.locator(".headline", { hasText: "cancelled" }).waitFor();
    await press(page, "Replay");
    await page.getByText("The job runs again.").waitFor();
    await press(page, "Theme: system");
    await page.getByRole("button", { name: "Theme: dark" }).waitFor();
    assertNoFaults(page);
    await page.context().close();
  });
});
