-- One answer for each wish, in their order: { 0, slot } for a permit, { number of a limit or GATE, time } for "not before".
-- Stops at a wish whose call the book does not cover, and says what has to be paid.

if call.epoch == epoch then
  for _, paid in ipairs(call.paid) do pay(paid.ledger, paid.tenant, paid.ends_at, paid.calls) end
end
local until_at = now + math.min(call.ahead, spec.longest)
local answers, taken, due = {}, {}, {}
local at, by = next_slot(newest())

local function answer(who, when)
  answers[#answers + 1], answers[#answers + 2] = who, when
end

local function grant(tenant)
  for _, c in ipairs(shared) do charge(c, at) end
  for _, number in ipairs(personal) do charge(count_of(number, tenant, call.most), at) end
  use(tenant, at, 1)
  taken[#taken + 1] = string.format('%.0f %d ', at, by) .. tenant
  answer(0, at)
  at, by = next_slot(at, by)
end

local stopped_at
for i, tenant in ipairs(call.tenants) do
  if at > until_at then
    answer(by == 0 and GATE or by, at)
  else
    local wait, who = tenant_wait(tenant, at, call.most)
    if wait then
      answer(who, wait)
    elseif is_covered(tenant, at) then
      grant(tenant)
    else
      stopped_at = i
      break
    end
  end
end

save_counts()
save_accounts()
if #taken > 0 then
  local recent = key_of('recent', '')
  for i = 1, #taken, 1000 do redis.call('RPUSH', recent, unpack(taken, i, math.min(i + 999, #taken))) end
  -- One more than can be handed back: what comes before the oldest of them.
  redis.call('LTRIM', recent, -1 - spec.most_recent, -1)
end
if stopped_at then
  local tenant, of_tenant = call.tenants[stopped_at], 0
  for i = stopped_at, #call.tenants do
    if call.tenants[i] == tenant then of_tenant = of_tenant + 1 end
  end
  local wanted = room(at, until_at, #call.tenants - stopped_at + 1)
  due = missing(tenant, at, wanted, math.min(wanted, of_tenant))
end
return { 'open', told, epoch, gate, answers, due }
