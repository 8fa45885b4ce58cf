-- `answer` of the script that gives permits. The numbers of its reply: for each wish, in their order, 0 and the time of its permit, or the number
-- of a limit (or GATE) and the time before which it gets none.
-- When the book does not cover the calls there is no answer at all, but a list of what has to be paid first.

local function charge_all(p, tenant, at, wish, k)
  for _, c in ipairs(p.shared) do charge(p, c, at) end
  for _, number in ipairs(p.per_tenant) do charge(p, count_of(p, number, tenant, k), at) end
  use(p, tenant, at, 1, wish)
end

-- Puts the permits on record, behind those that are there.
local function record(p, permits)
  local recent = key_of(p, 'recent', '')
  local length = 0
  for i = 1, #permits, 1000 do length = redis.call('RPUSH', recent, unpack(permits, i, math.min(i + 999, #permits))) end
  -- Some more are kept, so that most scripts need not cut.
  if length <= p.spec.most_recent * 9 / 8 then return end
  redis.call('LTRIM', recent, -p.spec.most_recent - 1, -1)
  redis.call('HSET', p.key, 'since', string.match(redis.call('LINDEX', recent, 0), '^%d+'))
end

local function answer(p, args)
  if args.epoch == p.epoch then
    for _, paid in ipairs(args.paid) do pay(p, paid.ledger, paid.tenant, paid.ends_at, paid.calls) end
    save_accounts(p)
  end
  local until_at = p.now + math.min(args.horizon, p.spec.longest)
  local answers, permits = {}, {}
  local at, by = next_slot(p, newest_permit(p))
  for wish, tenant in ipairs(args.tenants) do
    local blocker, time = by == 0 and GATE or by, at
    if at <= until_at then
      time, blocker = tenant_wait(p, tenant, at, args.most)
      if not time then
        time, blocker = at, 0
        charge_all(p, tenant, at, wish, args.most)
        permits[#permits + 1] = string.format('%.0f %d ', at, by) .. tenant
        at, by = next_slot(p, at, by)
      end
    end
    answers[#answers + 1], answers[#answers + 2] = blocker, time
  end
  local due = unpaid(p)
  if #due > 0 then return reply(p, 'open', {}, due) end
  save_counts(p)
  save_accounts(p)
  record(p, permits)
  return reply(p, 'open', answers)
end
