-- One answer for each wish, in their order: { 0, slot } for a permit, { number of a limit or GATE, time } for "not before".
-- When calls are wanted that the book does not cover, there is no answer at all, and what has to be paid first.

if call.epoch == epoch and #call.paid > 0 then
  for _, paid in ipairs(call.paid) do pay(paid.ledger, paid.tenant, paid.ends_at, paid.calls) end
  save_accounts()
end
local until_at = now + math.min(call.ahead, spec.longest)
local answers, taken = {}, {}
local at, by = next_slot(newest())

local function answer(who, when)
  answers[#answers + 1], answers[#answers + 2] = who, when
end

local function grant(wish, tenant)
  for _, c in ipairs(shared) do charge(c, at) end
  for _, number in ipairs(personal) do charge(count_of(number, tenant, call.most), at) end
  use(tenant, at, 1, wish)
  taken[#taken + 1] = string.format('%.0f %d ', at, by) .. tenant
  answer(0, at)
  at, by = next_slot(at, by)
end

for wish, tenant in ipairs(call.tenants) do
  if at > until_at then
    answer(by == 0 and GATE or by, at)
  else
    local wait, who = tenant_wait(tenant, at, call.most)
    if wait then answer(who, wait) else grant(wish, tenant) end
  end
end

local due = unpaid()
if #due > 0 then return { 'open', told, epoch, gate, ahead, {}, due, {} } end
save_counts()
save_accounts()
if #taken > 0 then
  local recent = key_of('recent', '')
  for i = 1, #taken, 1000 do redis.call('RPUSH', recent, unpack(taken, i, math.min(i + 999, #taken))) end
  -- One more than can be handed back: what comes before the oldest of them.
  redis.call('LTRIM', recent, -1 - spec.most_recent, -1)
end
return { 'open', told, epoch, gate, ahead, answers, {}, {} }
