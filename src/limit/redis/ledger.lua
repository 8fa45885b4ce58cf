-- What the book has of the long limits, as src/limit/ledger.rs: by sub-window, how many calls are used and how many are paid for.
--
-- A call is given only when its sub-window has one that is paid for. The caller pays: it writes the book and then says so here. Numbers
-- in the book only grow, and what several callers have paid for the same sub-window is the greatest of their numbers.

local accounts = {}

-- Sub-windows go by their end in milliseconds, rounded up: that is their name in the book.
local function account_of(number, tenant)
  local ledger = spec.ledgers[number]
  local owner = ledger.per_tenant and tenant or ''
  local id = number .. ':' .. owner
  local a = accounts[id]
  if not a then
    a = { key = key_of('book/' .. ledger.name, owner), tenant = owner, subs = {}, is_calendar = ledger.zone > 0 }
    local stored = redis.call('GET', a.key)
    a.is_new = not stored
    local flat = stored and cmsgpack.unpack(stored) or {}
    for i = 1, #flat, 3 do a.subs[flat[i]] = { used = flat[i + 1], paid = flat[i + 2], before = flat[i + 1] } end
    accounts[id] = a
  end
  return a
end

-- The ends of the sub-windows that a call at `at` counts in.
local function sub_ends(ledger, at)
  if ledger.zone == 0 then
    return { math.ceil((math.floor(at / ledger.len) * ledger.len + ledger.len) / 1000) }
  end
  local edges, ends = call.edges[ledger.zone], {}
  for _, i in ipairs(touched(edges, spec.skew, at + ahead)) do ends[#ends + 1] = math.ceil(edges[i + 1] / 1000) end
  return ends
end

-- Counts calls of a tenant at `at`; `wish` is the number of the wish that wants one. What is not paid for yet shows in `unpaid`.
local function use(tenant, at, calls, wish)
  for number, ledger in ipairs(spec.ledgers) do
    local a = account_of(number, tenant)
    for _, ends_at in ipairs(sub_ends(ledger, at)) do
      local sub = a.subs[ends_at]
      if not sub and calls > 0 then
        sub = { used = 0, paid = 0, before = 0 }
        a.subs[ends_at] = sub
      end
      if sub then
        sub.used, a.is_touched = math.max(sub.used + calls, 0), true
        if sub.used > sub.paid then a.number, a.wish = number, a.wish or wish end
      end
    end
  end
end

local function pay(number, tenant, ends_at, calls)
  local a = account_of(number, tenant)
  local sub = a.subs[ends_at] or { used = 0, paid = 0, before = 0 }
  sub.paid = math.max(sub.paid, calls)
  a.subs[ends_at], a.is_touched = sub, true
end

-- What has to be paid before all calls that were counted are covered, a block at least: { ledger, wish, end, calls, ... }.
local function unpaid()
  local due = {}
  for _, a in pairs(accounts) do
    for ends_at, sub in pairs(a.wish and a.subs or {}) do
      if sub.used > sub.paid then
        local calls = math.max(sub.used, sub.before + spec.ledgers[a.number].block)
        for _, number in ipairs({ a.number, a.wish, ends_at, calls }) do due[#due + 1] = number end
      end
    end
  end
  return due
end

local function save_accounts()
  for _, a in pairs(accounts) do
    if a.is_touched then
      local flat, last = {}, now
      local wall = a.is_calendar and ahead or 0
      for ends_at, sub in pairs(a.subs) do
        -- No call is given or handed back in a sub-window that ended a while ago; the counts remember it.
        if ends_at * 1000 + spec.skew >= now + wall then
          flat[#flat + 1], flat[#flat + 2], flat[#flat + 3] = ends_at, sub.used, sub.paid
          last = math.max(last, ends_at * 1000 + spec.skew - wall)
        end
      end
      redis.call('SET', a.key, cmsgpack.pack(flat))
      keep(a.key, a.tenant, a.is_new, last)
      a.is_new, a.is_touched = false, false
    end
  end
end
